"""The messages of headwater.v1, generated from proto/headwater/v1."""
