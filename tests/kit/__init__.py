"""What the tests share; tests/README.md lists these modules."""
