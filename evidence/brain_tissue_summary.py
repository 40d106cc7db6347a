"""What the rows of brain_tissue.py say."""


def summary(rows: list) -> dict:
    return {}
    return {}
