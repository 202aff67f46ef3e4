"""Outages: what buyers and lookers are answered while a service is away. Each module is a test by hand."""
