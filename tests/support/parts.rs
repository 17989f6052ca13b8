//! The hub's own parts over the folder of a hub, for what no answer tells.

use std::{path::Path, sync::Arc};

use datafusion::execution::runtime_env::RuntimeEnv;
use gridhub::{
    dataset::contract,
    disclose::{Gate, Settings},
    keys::Keys,
    policy::{Policy, View},
    pseudonym::Pseudonyms,
    query::{self, Engine, defences::Defences},
    release::{ledger::Ledger, noise::NoiseKey},
    store::{Store, publication::Publisher},
};
use uuid::Uuid;

use super::{TestHub, repository};

pub struct Parts {
    pub engine: Arc<Engine>,
    pub policy: Policy,
    pub store: Store,
    pub gate: Arc<Gate>,
    pub pseudonyms: Arc<Pseudonyms>,
    pub runtime: Arc<RuntimeEnv>,
}

impl Parts {
    /// With the repository's policies, all defences, and so many bytes for tables in memory.
    pub async fn of(hub: &TestHub, tables: usize) -> Self {
        Self::under(hub, &repository().join("policies"), Defences::default(), tables).await
    }

    pub async fn under(hub: &TestHub, policies: &Path, defences: Defences, tables: usize) -> Self {
        let (folder, clock, limits) = (hub.folder.path(), hub.clock.clone(), query::Limits::default());
        let clock: gridhub::audit::Clock = Arc::new(move || clock.now());
        let datasets = contract::load_folder(&repository().join("schemas")).unwrap();
        let keys = Arc::new(Keys::open(&folder.join("keys"), &hub.data(), true).unwrap());
        let metadata = Arc::new(hub.metadata());
        let publisher = Publisher::new(Arc::clone(&metadata), &keys, Arc::clone(&clock));
        let ledger = Ledger::open(metadata).unwrap();
        let gate = Gate::new(NoiseKey::new(&keys), ledger, Settings::default(), defences);
        let pseudonyms = Arc::new(Pseudonyms::new(keys));
        let runtime = query::runtime(&folder.join(Uuid::now_v7().to_string()), &limits).unwrap();
        let folder = hub.data().join("tables");
        let store = Store::open(&folder, &datasets, Arc::clone(&runtime), publisher, tables).await.unwrap();
        let policy = Policy::load(policies, &datasets, Arc::clone(&clock)).unwrap();
        let engine = Engine::new(Arc::clone(&runtime), Arc::clone(&pseudonyms), limits, clock, defences).unwrap();
        Self { engine: Arc::new(engine), policy, store, gate: Arc::new(gate), pseudonyms, runtime }
    }

    pub fn view(&self, (caller, purpose): (&str, &str)) -> Arc<View> {
        self.policy.view(&self.policy.caller(caller).unwrap(), purpose).unwrap()
    }
}
