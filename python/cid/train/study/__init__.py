"""Many runs from one file: what is compared, by several processes, a row for every network, and a table of all."""
