"""robustres.certify."""

if __name__ == "certify":
    raise ImportError("import robustres.certify: the bare name `certify` belongs to your own project")
