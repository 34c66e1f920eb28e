//! How images come from a server: what is fetched from one that does its worst, and which signatures count.

#![allow(clippy::unwrap_used)]

mod child;
mod fetch;
mod killed;
mod layers;
mod list;
mod pieces;
mod registry;
mod server;
mod signature;
mod tenths;
mod tls;
