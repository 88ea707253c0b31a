"""How good saved networks are: on the tests of their data, and on images that something has happened to."""
