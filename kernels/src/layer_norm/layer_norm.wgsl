// layer_norm: see mod.rs for the formula.
