/* SPDX-License-Identifier: MIT */
/*
 * aioctx-blk: timed block I/O from several iothreads.
 *
 * The main thread reads the options, opens the backend, starts iothreads with one job each, waits
 * until they are done, and reports.  It talks with them through one notifier only, which signal
 * handlers set too.
 */
#include <aioctx/aioctx.h>

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "blk_job.h"
#include "blk_options.h"
#include "blk_progress.h"
#include "blk_report.h"
#include "blk_set.h"
#include "conformance.h"
#include "live.h"

#define EXIT_FAILED 1
#define EXIT_USAGE 2
#define START_AHEAD_NS (INT64_C(2) * 1000000)
/* `timeout` and some shells send one signal twice: those that come this close count as one. */
#define SAME_SIGNAL_NS (INT64_C(100) * 1000000)

struct app {
    struct blk_command command;
    struct blk_set set;
    FILE *json;
    bool trace_failed;
    bool show_progress;
    struct blk_progress progress;
};

/* ---- Signals --------------------------------------------------------------------------------- */

/* Made before the handlers are set; stays until the process ends. */
static EventNotifier news;
static volatile sig_atomic_t caught_signal;
static volatile int64_t caught_ns;

static int64_t monotonic_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * INT64_C(1000000000) + ts.tv_nsec;
}

static void on_signal(int number)
{
    int saved_errno = errno;

    if (!caught_signal) {
        caught_ns = monotonic_ns();
        caught_signal = number;
        event_notifier_set(&news);
    } else if (monotonic_ns() - caught_ns > SAME_SIGNAL_NS) {
        _exit(128 + number);
    }
    errno = saved_errno;
}

static int set_up_signals(void)
{
    static const int numbers[] = { SIGINT, SIGTERM };
    struct sigaction action = { .sa_handler = on_signal, .sa_flags = SA_RESTART };
    struct sigaction old;
    int ret = event_notifier_init(&news, 0);

    if (ret < 0) {
        return ret;
    }
    sigaddset(&action.sa_mask, SIGINT);
    sigaddset(&action.sa_mask, SIGTERM);
    for (unsigned i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
        /* Who ignores it for us, such as a shell for what runs in the background, means it. */
        if (sigaction(numbers[i], NULL, &old) == 0 && old.sa_handler != SIG_IGN) {
            sigaction(numbers[i], &action, NULL);
        }
    }
    signal(SIGXFSZ, SIG_IGN); /* a file that grows too large is an error, not an end */
    return 0;
}

/* ---- Running --------------------------------------------------------------------------------- */

static bool job_failed(const struct blk_job *job)
{
    const struct blk_results *results = blk_job_results(job);

    return blk_job_state(job) != JOB_RUNNING &&
           (results->failure.what || live_get(&results->counters.mismatches));
}

static bool all_ended(const struct app *app)
{
    for (unsigned i = 0; i < app->set.made; i++) {
        if (blk_job_state(app->set.jobs[i]) == JOB_RUNNING) {
            return false;
        }
    }
    return true;
}

static bool must_stop(const struct app *app)
{
    for (unsigned i = 0; i < app->set.made; i++) {
        if (job_failed(app->set.jobs[i]) || blk_job_state(app->set.jobs[i]) == JOB_STUCK) {
            return true;
        }
    }
    return caught_signal != 0 || app->trace_failed;
}

/* What the progress line counts down to: the last job's end. */
static struct blk_progress_goal find_goal(const struct app *app, int64_t start_ns)
{
    struct blk_progress_goal goal = { 0 };
    bool all_end = true, all_count = true;

    for (unsigned g = 0; g < app->command.nr_jobs; g++) {
        const struct blk_options *opt = &app->command.jobs[g];
        int64_t end_ns = start_ns + opt->ramp_ns + opt->runtime_ns;
        uint64_t ios = opt->replay ? app->set.groups[g].trace_requests : opt->ios;

        all_end = all_end && opt->runtime_ns;
        all_count = all_count && ios;
        goal.end_ns = end_ns > goal.end_ns ? end_ns : goal.end_ns;
        goal.ios += ios;
    }
    goal.end_ns = all_end ? goal.end_ns : 0;
    goal.ios = all_count ? goal.ios : 0;
    return goal;
}

static void show_progress(struct app *app, bool layout, int64_t start_ns)
{
    struct blk_progress_goal goal = find_goal(app, start_ns);

    if (layout) {
        blk_progress_show_layout(app->set.jobs, app->set.made, blk_set_layout_bytes(&app->set));
    } else {
        blk_progress_show(&app->progress, app->set.jobs, app->set.made, &goal, start_ns);
    }
}

/* A trace that cannot be written ends the run. */
static void write_trace(struct app *app)
{
    if (app->set.trace && !app->trace_failed) {
        app->trace_failed = blk_trace_write(app->set.trace) < 0;
    }
}

/* Waits until every job has ended its phase; one that fails ends them all. */
static void wait_for_jobs(struct app *app, bool layout, int64_t start_ns)
{
    struct pollfd pfd = { .fd = event_notifier_get_fd(&news), .events = POLLIN };
    int64_t timeout_ns = app->show_progress ? BLK_PROGRESS_INTERVAL_NS : -1;
    bool stopped = false;

    for (;;) {
        event_notifier_test_and_clear(&news);
        write_trace(app);
        if (all_ended(app)) {
            break;
        }
        if (!stopped && must_stop(app)) {
            stopped = true;
            for (unsigned i = 0; i < app->set.made; i++) {
                blk_job_stop(app->set.jobs[i]);
            }
        }
        if (qemu_poll_ns(&pfd, 1, timeout_ns) == 0) {
            show_progress(app, layout, start_ns);
        }
    }
    if (app->show_progress) {
        blk_progress_clear();
    }
}

/* Returns false when the layout was not done to its end. */
static bool lay_out(struct app *app)
{
    uint64_t laid_out = 0, wanted = blk_set_layout_bytes(&app->set);

    if (!wanted) {
        return true;
    }
    for (unsigned i = 0; i < app->set.made; i++) {
        if (blk_set_options(&app->set, i)->layout) {
            blk_job_layout(app->set.jobs[i]);
        }
    }
    wait_for_jobs(app, true, 0);
    for (unsigned i = 0; i < app->set.made; i++) {
        laid_out += blk_job_results(app->set.jobs[i])->counters.laid_out;
    }
    return laid_out == wanted;
}

static void measure(struct app *app)
{
    int64_t start_ns = qemu_clock_get_ns(QEMU_CLOCK_REALTIME) + START_AHEAD_NS;

    for (unsigned i = 0; i < app->set.made; i++) {
        blk_job_run(app->set.jobs[i], start_ns);
    }
    wait_for_jobs(app, false, start_ns);
}

/* ---- The end --------------------------------------------------------------------------------- */

static void complain_of_failure(const struct blk_job *job)
{
    const struct blk_failure *failure = &blk_job_results(job)->failure;
    const char *name = blk_job_name(job);

    if (strcmp(failure->what, "flush") == 0) {
        blk_complain("%s: flush failed: %s", name, strerror(failure->error));
    } else if (strcmp(failure->what, "drain") == 0) {
        blk_complain("%s: at the end no request ended for too long; what was left was cancelled",
                     name);
    } else {
        blk_complain("%s: %s of %lld bytes at offset %lld failed: %s", name, failure->what,
                     (long long)failure->bytes, (long long)failure->offset_bytes,
                     strerror(failure->error));
    }
}

/* Says what went wrong, and returns the status for JSON: the worst that happened. */
static const char *judge(const struct app *app, bool laid_out)
{
    const char *status = caught_signal ? "interrupted" : "ok";

    for (unsigned i = 0; i < app->set.made; i++) {
        const struct blk_job *job = app->set.jobs[i];
        const struct blk_results *results = blk_job_results(job);

        if (blk_job_state(job) == JOB_STUCK) {
            blk_complain("%s: requests were cancelled but do not end; giving up",
                         blk_job_name(job));
            return "stuck";
        }
        if (results->failure.what) {
            complain_of_failure(job);
            status = "error";
        } else if (results->counters.mismatches && strcmp(status, "error") != 0) {
            status = "mismatch";
        }
    }
    if (!laid_out && strcmp(status, "ok") == 0) {
        blk_complain("--layout: some blocks could not be written in time");
        return "error";
    }
    return status;
}

/* Closes @stream; false, after a message, when not everything could be written. */
static bool finish_stream(FILE *stream, const char *name)
{
    bool failed = ferror(stream) != 0;

    if ((stream == stdout || stream == stderr ? fflush(stream) : fclose(stream)) != 0 || failed) {
        blk_complain("cannot write %s: %s", name, strerror(errno));
        return false;
    }
    return true;
}

/* Returns whether all of it could be written. */
static bool report(const struct app *app, const char *status)
{
    struct blk_report r = {
        .command = &app->command,
        .status = status,
        .jobs = app->set.groups,
        .nr_jobs = app->command.nr_jobs,
        .rows = app->set.jobs,
        .nr_rows = app->set.made,
    };
    FILE *table = app->json == stdout ? stderr : stdout;
    bool good;

    blk_report_table(&r, table);
    if (app->command.plot) {
        blk_report_plot(&r, table);
    }
    good = finish_stream(table, "the table");
    if (app->json) {
        blk_report_json(&r, app->json);
        good = finish_stream(app->json, app->command.json) && good;
    }
    return good;
}

/* Runs the jobs that have been made; returns the exit status. */
static int run(struct app *app)
{
    bool laid_out = lay_out(app), reported;
    const char *status;

    if (laid_out && !caught_signal) {
        measure(app);
    }
    status = judge(app, laid_out);
    reported = blk_set_finish_trace(&app->set, strcmp(status, "stuck") != 0);
    reported = report(app, status) && reported;
    app->json = NULL;
    if (strcmp(status, "stuck") == 0) {
        _exit(EXIT_FAILED); /* nothing that they use may be freed */
    }
    if (!reported || strcmp(status, "error") == 0 || strcmp(status, "mismatch") == 0) {
        return EXIT_FAILED;
    }
    return caught_signal ? 128 + caught_signal : 0;
}

/* Before the run, so that it is not for nothing. */
static int open_json(struct app *app)
{
    const char *path = app->command.json;

    if (!path) {
        return 0;
    }
    app->json = strcmp(path, "-") == 0 ? stdout : fopen(path, "we");
    if (!app->json) {
        blk_complain("--json %s: expected a file that can be written: %s", path, strerror(errno));
        return EXIT_USAGE;
    }
    return 0;
}

static int try_conformance(const struct blk_command *command)
{
    ConformanceOptions opts = {
        .monitor = command->jobs[0].monitor,
        .seed = command->jobs[0].seed,
        .limit_ns = command->limit_ns,
    };
    int failed = conformance_run(command->conformance, &opts, stdout);

    return failed < 0 ? EXIT_USAGE : failed > 0 ? EXIT_FAILED : 0;
}

static int work(struct app *app)
{
    int status;

    app->show_progress = !app->command.no_progress && isatty(STDERR_FILENO);
    app->set.command = &app->command;
    app->set.news = &news;
    app->set.message_start = app->show_progress ? BLK_PROGRESS_CLEAR : "";
    status = open_json(app);
    if (status == 0) {
        status = blk_set_make(&app->set);
    }
    if (status == 0) {
        status = run(app);
    }
    blk_set_free(&app->set);
    if (app->json && app->json != stdout) {
        fclose(app->json);
    }
    return status;
}

int main(int argc, char *argv[])
{
    static struct app app;
    int status = blk_command_parse(&app.command, argc, argv);

    if (status >= 0) {
        return status;
    }
    if (app.command.conformance) {
        status = try_conformance(&app.command);
    } else if (set_up_signals() < 0) {
        blk_complain("cannot make an eventfd: %s", strerror(errno));
        status = EXIT_FAILED;
    } else {
        status = work(&app);
    }
    blk_command_free(&app.command);
    return status;
}
