"""Files behind addresses such as s3://: found, told apart without reading them, and fetched once."""
