"""What gradient norms look like in published training runs, and what each rule would have done to them."""
