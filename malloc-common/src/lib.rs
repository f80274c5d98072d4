//! What the kernel programs and the daemon must agree on: layouts that cross the kernel boundary,
//! and pure functions compiled on both sides.
#![cfg_attr(not(test), no_std)]

pub mod abi;
pub mod allowance;
pub mod chunk;
pub mod depth;
pub mod function;
pub mod heap_event;
pub mod histogram;
pub mod loss;
pub mod maps;
pub mod origin;
pub mod sample;
pub mod site;
pub mod stripe;
pub mod tracker;
