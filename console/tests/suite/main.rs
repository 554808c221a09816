//! The HTTP interface against a backend made by hand.

mod backend;
mod commands;
mod documents;
mod events;
mod health;
mod hostile;
mod metrics;
mod routes;
