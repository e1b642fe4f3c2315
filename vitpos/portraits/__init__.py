"""Pictures of schemes and models: what they do, measured on them and drawn."""
