"""What drives batch jobs: inputs cut into parts, parts given to devices or scored here, results counted and merged."""
