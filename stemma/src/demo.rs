//! `stemma demo`; not assembled yet.
use crate::cli::DemoArgs;
use crate::commands::Context;
use model::Trouble;
/// Runs the command.
pub async fn run(_context: &Context, _args: DemoArgs) -> Result<u8, Trouble> {
    Ok(0)
}
