"""The commands ``vitpos fit``, ``validate`` and ``test``: one training, or a checkpoint evaluated."""

COMMANDS = {
    "fit": "train one ViT with one position scheme",
    "validate": "evaluate a checkpoint on the validation images",
    "test": "evaluate a checkpoint on the test images",
}


def command(words: list[str]) -> int:
    """Carries ``vitpos fit``, ``validate`` or ``test`` out.

    Returns:
        0.

    Raises:
        VitposError: A user's mistake.
    """
    from vitpos.train.cli import VitposCLI

    try:
        VitposCLI(words, run=True)
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # Lightning makes an exit code of it
            raise KeyboardInterrupt from error
        raise
    return 0
