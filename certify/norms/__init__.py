"""The norm of one linear map."""
