// gelu: see mod.rs for the formula.
