//! The handlers, in the order of the contract. Each says in its parameters who may call and what it takes;
//! the body is one call. Which path leads where stands in [`crate::app`].

pub mod account;
pub mod admin;
pub mod cart;
pub mod categories;
pub mod docs;
pub mod health;
pub mod orders;
pub mod problems;
pub mod products;
pub mod ws;

mod batch;
mod cache;
mod page;
mod patch;
pub mod replay;
