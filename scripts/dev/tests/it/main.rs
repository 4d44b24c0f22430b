//! What holds for the repository as a whole: its rules of structure, and that its scripts do what they say.

mod bounds;
mod contract;
mod deployed;
mod rules;
mod starts;
mod tls;
mod trace;
mod whole;
