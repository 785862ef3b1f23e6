//! Nodes without listeners: each is an `App` with its own pool and clock.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use portcullis::app::App;
use portcullis::config::Config;
use portcullis::keys::{Alg, Generated, KeySource};
use portcullis::secret::Entropy;
use portcullis::time::{Clock, Timestamp};
use portcullis_verifier::{Claims, Need, Rev};

use crate::fixtures::server::{fresh_database, start_of_time};
use crate::fixtures::{Db, ISSUER};

/// A clock, and the database that all nodes share.
pub struct World {
    pub clock: Arc<AtomicI64>,
    pub config: Config,
    pub source: KeySource,
}

impl World {
    /// Creates a database without even the first keys.
    pub async fn new(db: Db, change: impl FnOnce(&mut Config)) -> Self {
        crate::fixtures::log::collect();
        let mut config = fresh_database(db).await;
        config.database.pool_size = 3;
        change(&mut config);
        Self {
            clock: Arc::new(AtomicI64::new(start_of_time().micros())),
            config,
            source: stock(),
        }
    }

    pub fn now(&self) -> Timestamp {
        Timestamp::from_micros(self.clock.load(Ordering::SeqCst))
    }

    pub fn set(&self, now: Timestamp) {
        self.clock.store(now.micros(), Ordering::SeqCst);
    }

    pub fn pass(&self, by: Duration) {
        self.set(self.now() + by);
    }

    /// Starts a node whose clock differs by this many microseconds.
    pub async fn node(&self, off: i64) -> Node {
        static SEED: AtomicI64 = AtomicI64::new(1_000);
        let off = Arc::new(AtomicI64::new(off));
        let clock = Clock::Skewed(Arc::clone(&self.clock), Arc::clone(&off));
        let seed = SEED.fetch_add(1, Ordering::SeqCst);
        let entropy = Entropy::seeded(seed.unsigned_abs());
        let app = App::start_with(self.config.clone(), clock, entropy, self.source.clone())
            .await
            .unwrap();
        Node { app, off }
    }
}

pub struct Node {
    pub app: App,
    /// The offset of its clock, in microseconds.
    pub off: Arc<AtomicI64>,
}

impl Node {
    /// Does the work of one minute of its background tasks.
    pub async fn minute(&self) {
        self.app.poll().await.unwrap();
        self.app.key_manager.run_maintenance().await.unwrap();
    }

    /// Issues a token with the longest possible lifetime for each algorithm.
    pub async fn signs(&self) -> Vec<String> {
        let keys = self.app.signing_keys().await.unwrap();
        let claims = claims(self.app.clock.now());
        [Alg::ES256, Alg::RS256]
            .map(|alg| keys.sign(alg, "at+jwt", &claims).unwrap())
            .to_vec()
    }

    /// Returns whether the endpoints of this node accept a token.
    pub fn accepts(&self, token: &str) -> bool {
        let now = self.app.clock.now().secs();
        self.app
            .verifier()
            .verify_at(token, &Need::any(), now)
            .is_ok()
    }
}

fn claims(now: Timestamp) -> Claims {
    Claims {
        iss: ISSUER.to_owned(),
        sub: "alice".to_owned(),
        aud: ISSUER.to_owned(),
        client_id: "shop".to_owned(),
        scope: "openid".to_owned(),
        iat: now.secs(),
        exp: (now + Duration::from_secs(3_600)).secs(),
        nbf: None,
        jti: "01a20013-9e82-7ad2-98c8-42a1eb0b038c".to_owned(),
        rev: Rev {
            feed_epoch: 1,
            client_epoch: 1,
            user_epoch: Some(1),
        },
        grant_id: None,
        sid: None,
        auth_time: None,
        acr: None,
        roles: Vec::new(),
        groups: Vec::new(),
        entitlements: Vec::new(),
        cnf: None,
    }
}

/// Returns a source of key pairs. RSA keys take long to generate, so all nodes in this process share the RSA
/// key of each version: of all that insert it into one database concurrently, one succeeds. P-256 keys are
/// generated each time.
pub fn stock() -> KeySource {
    static MADE: Mutex<BTreeMap<i64, Generated>> = Mutex::new(BTreeMap::new());
    let fresh = KeySource::fresh(2_048, Entropy::seeded(77));
    KeySource::from_fn(move |alg, generation| match alg {
        Alg::ES256 => fresh.make(alg, generation),
        Alg::RS256 => {
            let mut made = MADE.lock().unwrap();
            if let Some(known) = made.get(&generation) {
                return Ok(known.clone());
            }
            let key = Generated::new(alg, 2_048, &Entropy::seeded(generation.unsigned_abs()))?;
            made.insert(generation, key.clone());
            Ok(key)
        }
    })
}

/// Does the same work at every node concurrently.
pub async fn all_at_once(nodes: &[Node]) {
    let mut turns: Vec<_> = nodes.iter().map(|node| Box::pin(node.minute())).collect();
    std::future::poll_fn(|context| {
        turns.retain_mut(|turn| turn.as_mut().poll(context).is_pending());
        match turns.is_empty() {
            true => std::task::Poll::Ready(()),
            false => std::task::Poll::Pending,
        }
    })
    .await;
}
