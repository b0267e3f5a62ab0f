"""The base class of attacks, their input and their result."""
