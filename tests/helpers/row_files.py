"""Files of rows, as users write them."""

import csv


def write_rows(file, rows, columns):
    """A CSV file with a header of these columns; each row is a mapping. Returns the file."""
    with file.open("w", newline="") as opened:
        table = csv.DictWriter(opened, columns)
        table.writeheader()
        table.writerows(rows)
    return file
