//! The life of a cluster, on real servers: built, used, changed, hurt, and each time back by itself.

mod commit_modes;
mod demo;
mod lifecycle;
mod nodes;
mod repair;
mod settings;
mod topology;
