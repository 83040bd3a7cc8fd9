"""Where Nix meets stores and execution: the evaluator's door onto a store, fetching. Imports anything below."""
