"""The HTTP API: routes, authentication, middleware and errors."""
