// dropout: see mod.rs for the formula.
