//! Faults: hubs that are killed, disks that are full, files that are damaged, input that means harm. After each,
//! what was acknowledged is there once, and what goes wrong is said clearly.

mod damage;
mod disk;
mod fuzz;
mod kills;
mod process;
