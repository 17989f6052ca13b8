//! Callers that prove to have a token, and do not send it.

use super::Hub;
use crate::{
    error::Result,
    identity::{self, Credential, scram::Proof},
};

impl Hub {
    /// Finds the caller of that id by its proof to have one of its tokens, and the hub's last message to it.
    ///
    /// # Errors
    /// [`Error::Unauthenticated`](crate::error::Error::Unauthenticated), the same for a caller that does not exist, a
    /// proof that is wrong, and a token that is no longer in force or was made before tokens could be proved;
    /// [`Error::LogUnavailable`](crate::error::Error::LogUnavailable) where the token's making could not be recorded.
    pub async fn authenticate_by_proof(&self, caller: &str, proof: &Proof) -> Result<(Credential, String)> {
        self.log_what_waits().await?;
        identity::authenticate_by_proof(caller, proof, &self.metadata, &self.policy, (self.clock)())
    }
}
