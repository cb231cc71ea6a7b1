//! (being built)
mod disk;
mod order;
mod rows;
mod score;
mod tasks;
mod tensorboard;
