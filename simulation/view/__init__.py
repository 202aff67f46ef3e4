"""What a person looks at: reports, comparisons, the index, the live view, and the plots in them."""
