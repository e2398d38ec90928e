//! Role `rescue`: publishes what a directory still holds that an ingress has left behind, such as that of a pod that will
//! not come back. It does what the ingress does with its own, once, and ends.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use tokio_util::sync::CancellationToken;

use crate::rescue::{Rescue, Round};

/// Options of role `rescue`.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// The directory: ingress.rescue.directory of the ingress that is gone.
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
    /// Configuration file of the ingress: brokers and topics. Variables override it.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// How long Kafka may take nothing before it is given up. What is left stays where it is.
    #[arg(long, value_name = "TIME", default_value = "1m", value_parser = humantime::parse_duration)]
    pub wait: Duration,
}

/// Shown with `--help`.
pub const EXIT_CODES: &str = "\
Exit codes: 0 Kafka has all that was there, 1 files are left, 64 command line, settings or the directory are at fault. \
It may be run again at any time; a process that still uses the directory keeps it out.";

/// Kafka has all.
const EMPTIED: u8 = 0;
/// Files are left.
const LEFT: u8 = 1;
/// Command line, settings or the directory are at fault (EX_USAGE of sysexits.h).
pub const USAGE: u8 = 64;

/// Between two rounds that nothing was taken in.
const TURN: Duration = Duration::from_secs(1);

/// Publishes what an open directory holds, prints what became of it, and returns the exit code; `None` if it was
/// stopped before its end.
pub async fn run(rescue: &Rescue, options: &Options, shutdown: &CancellationToken) -> Option<u8> {
    let mut all = Round::default();
    let mut taken = Instant::now();
    loop {
        let round = rescue.round(shutdown).await;
        all = Round {
            published: all.published + round.published,
            left: round.left,
            set_aside: all.set_aside + round.set_aside,
        };
        if round.published > 0 {
            taken = Instant::now();
        }
        if round.left == 0 || taken.elapsed() >= options.wait || shutdown.is_cancelled() {
            break;
        }
        if round.published == 0 {
            tokio::select! {
                () = tokio::time::sleep(TURN) => {}
                () = shutdown.cancelled() => break,
            }
        }
    }
    let Round { published, left, set_aside } = all;
    let stopped = if shutdown.is_cancelled() { "stopped: " } else { "" };
    println!("{stopped}{published} published, {left} not taken, {set_aside} set aside");
    match (left + set_aside, shutdown.is_cancelled()) {
        (_, true) => None,
        (0, false) => Some(EMPTIED),
        (_, false) => Some(LEFT),
    }
}
