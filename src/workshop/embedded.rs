//! librdkafka's mock cluster as a broker inside the process, for role `dev` and for tests.
//!
//! It speaks Kafka's protocol to any client, keeps records in memory only, about 5 MiB a partition, and drops the
//! oldest beyond that (a larger record drops all before it). It never holds anything that has to last.

use std::sync::mpsc;
use std::thread;

use rdkafka::error::KafkaError;
use rdkafka::mocking::MockCluster;

/// A cluster that lives as long as this value.
pub struct Embedded {
    bootstrap_servers: String,
    /// Hangs up when dropped, which ends the cluster's thread.
    _alive: mpsc::Sender<()>,
}

impl Embedded {
    /// Starts one broker on a free port of the loopback interface, with these topics of one partition each.
    ///
    /// # Errors
    /// When librdkafka cannot start it or make a topic.
    pub fn start<T: AsRef<str>>(topics: &[T]) -> Result<Embedded, KafkaError> {
        let topics: Vec<String> = topics.iter().map(|topic| topic.as_ref().to_owned()).collect();
        let (alive, hung_up) = mpsc::channel();
        let (tell, told) = mpsc::channel();
        // The cluster may not change threads, so one of its own keeps it.
        let keep = move || {
            let started = MockCluster::new(1).and_then(|cluster| {
                topics.iter().try_for_each(|topic| cluster.create_topic(topic, 1, 1))?;
                Ok(cluster)
            });
            match started {
                Ok(cluster) => {
                    let _ = tell.send(Ok(cluster.bootstrap_servers()));
                    // Comes back with an error as soon as the `Embedded` is dropped, which is what is waited for.
                    let _ = hung_up.recv();
                }
                Err(error) => {
                    let _ = tell.send(Err(error));
                }
            }
        };
        thread::Builder::new()
            .name("embedded-kafka".to_owned())
            .spawn(keep)
            .expect("a thread can be started while the process starts");
        let bootstrap_servers = told.recv().expect("the thread tells how the start went")?;
        Ok(Embedded { bootstrap_servers, _alive: alive })
    }

    /// `host:port` of the broker.
    pub fn bootstrap_servers(&self) -> &str {
        &self.bootstrap_servers
    }
}
