//! The example run is killed at fifty points and resumed: the output is right every time, and no
//! acknowledged checkpoint is lost.

mod kit;

use kit::Project;
use kit::example::Undisturbed;

const POINTS: u32 = 50;
/// The machine has two cores; each worker mostly waits for the disk.
const WORKERS: u32 = 3;

#[test]
fn killed_at_fifty_points_and_resumed_the_output_is_right_every_time() {
    let undisturbed = Undisturbed::run(&Project::example("weather"));
    std::thread::scope(|scope| {
        for worker in 0..WORKERS {
            let undisturbed = &undisturbed;
            scope.spawn(move || {
                for point in (worker..POINTS).step_by(WORKERS as usize) {
                    undisturbed.kill_and_resume(&Project::example("weather"), point, POINTS);
                }
            });
        }
    });
}
