// sum_squares: see mod.rs for the formula.
