"""The page for operators at `/` of the admin port."""
