"""The stages: front door, relay, fulfilment and keeper. Imported by server, start-up and command line."""
