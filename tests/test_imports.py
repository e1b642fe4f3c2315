import subprocess
import sys
from importlib.metadata import version

import vitpos


def test_public_names():
    assert set(vitpos.__all__) == {
        "Geometry", "PositionEmbedding", "__version__", "attach", "available", "build", "create_model", "detach",
        "register",
    }  # fmt: skip
    assert all(hasattr(vitpos, name) for name in vitpos.__all__)
    assert set(dir(vitpos)) == set(vitpos.__all__)
    assert vitpos.__version__ == version("vitpos")


def test_importing_vitpos_loads_no_trainer_warns_of_nothing_and_registers_the_models():
    code = (
        "import sys, vitpos, timm; "
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'lightning', 'pytorch_lightning', 'tensorboard',"
        " 'jsonargparse', 'matplotlib', 'sklearn', 'statsmodels'}), len(timm.list_models('vitpos_*')))"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr, done.stdout.strip()) == (0, "", "[] 5")


def test_positions_load_torch_and_the_standard_library_only():
    # The package above imports timm, so the modules are loaded under a bare parent.
    code = (
        "import sys, types, importlib.util as u; spec = u.find_spec('vitpos'); "
        "m = types.ModuleType('vitpos'); m.__path__ = list(spec.submodule_search_locations); "
        "sys.modules['vitpos'] = m; import torch; before = {n.split('.')[0] for n in sys.modules}; "
        "import vitpos.positions; after = {n.split('.')[0] for n in sys.modules}; "
        "print(sorted(after - before - set(sys.stdlib_module_names)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_in_the_command_names_are_there_when_asked_for():
    code = (
        "import sys; sys.argv = ['vitpos']; import vitpos; print('torch' in sys.modules, "
        "len({name: getattr(vitpos, name) for name in vitpos.__all__}), vitpos.attach is vitpos.attach); vitpos.nothing"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "False 9 True"
    assert "AttributeError: module 'vitpos' has no attribute 'nothing'" in done.stderr
