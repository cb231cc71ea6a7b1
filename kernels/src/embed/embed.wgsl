// embed: see mod.rs for the formula.
