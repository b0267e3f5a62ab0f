"""robustres.reports."""

if __name__ == "reports":
    raise ImportError("import robustres.reports: the bare name `reports` belongs to your own project")
