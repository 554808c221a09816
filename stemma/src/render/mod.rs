//! What people see: status tree, tables, errors, amounts. Pure text making; printing is in `out`.

pub mod finding;
pub mod look;
pub mod out;
pub mod status;
pub mod table;
pub mod trouble;
pub mod units;
