"""A small social site on taskq: posting answers at once, and workers put the post into every follower's feed."""
