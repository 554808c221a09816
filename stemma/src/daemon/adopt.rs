//! Taking over a database that already exists.

use keeper::NodeConfig;
use keeper::enrol::Adopted;
use model::{Settings, Trouble};

/// Makes our roles in the database and takes its configuration over into the settings.
pub async fn prepare(_config: &NodeConfig, _superuser: &str, _settings: &mut Settings) -> Result<Adopted, Trouble> {
    Err(Trouble::internal("adoption is not assembled yet", "begin with an empty data directory"))
}
