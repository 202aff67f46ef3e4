"""The stages: front door, relay, fulfilment and keeper, each a process that works between two stores."""
