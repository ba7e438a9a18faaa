"""Data that models make: rows out of rows, resumable row by row, each with where it comes from."""
