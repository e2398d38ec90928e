//! The word to read files again now: secrets, keys, certificates, whatever is looked at for changes anyhow. Who looks
//! at files says how it is woken; who has heard the word (a signal, in the binary) wakes them all.

use std::fmt;
use std::sync::{Arc, Mutex};

type Wake = Box<dyn Fn() + Send>;

/// Those who read files again. Clones are the same.
#[derive(Clone, Default)]
pub struct Rereading(Arc<Mutex<Vec<Wake>>>);

impl Rereading {
    /// From now on `wake` is called whenever files are to be read again. It must not wait for anything.
    pub fn on(&self, wake: impl Fn() + Send + 'static) {
        self.0.lock().expect("no panic while held").push(Box::new(wake));
    }

    /// Wakes all who read files again; whether there is anybody.
    pub fn now(&self) -> bool {
        let all = self.0.lock().expect("no panic while held");
        all.iter().for_each(|wake| wake());
        !all.is_empty()
    }
}

impl fmt::Debug for Rereading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Rereading")
    }
}
