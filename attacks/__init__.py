"""robustres.attacks."""

if __name__ == "attacks":
    raise ImportError("import robustres.attacks: the bare name `attacks` belongs to your own project")
