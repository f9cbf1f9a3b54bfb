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
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "blk_job.h"
#include "blk_options.h"
#include "blk_progress.h"
#include "blk_report.h"
#include "blk_target.h"
#include "conformance.h"
#include "live.h"

#define EXIT_FAILED 1
#define EXIT_USAGE 2
#define START_AHEAD_NS (INT64_C(2) * 1000000)
/* `timeout` and some shells send one signal twice: those that come this close count as one. */
#define SAME_SIGNAL_NS (INT64_C(100) * 1000000)

struct app {
    struct blk_options opt;
    struct blk_target target;
    FILE *json;
    IOThread **threads;
    struct blk_job **jobs;
    unsigned made; /* how many of both there are */
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

/* ---- Iothreads and jobs ---------------------------------------------------------------------- */

static uint64_t make_run_id(void)
{
    uint64_t id;

    if (getrandom(&id, sizeof(id), 0) != (ssize_t)sizeof(id)) {
        id = (uint64_t)monotonic_ns() ^ (uint64_t)getpid() << 48;
    }
    return id;
}

/* Returns 0 or the exit status, after a message. */
static int make_thread(struct app *app, unsigned index)
{
    IOThreadOptions io_opts = { .context.monitor = app->opt.monitor, .cpus = app->opt.cpus };
    char name[16], *why = NULL;
    int status;

    snprintf(name, sizeof(name), "io%u", index);
    app->threads[index] = iothread_new(name, &io_opts);
    if (!app->threads[index] && errno == EINVAL) {
        return EXIT_USAGE; /* --cpus or AIOCTX_FDMON: the library has said so */
    }
    if (!app->threads[index]) {
        status = app->opt.monitor ? EXIT_USAGE : EXIT_FAILED;
        blk_complain("cannot start iothread %s%s%s: %s", name,
                     app->opt.monitor ? " with --monitor " : "",
                     app->opt.monitor ? app->opt.monitor : "", strerror(errno));
        return status;
    }
    if (blk_check_context(app->target.blk, iothread_get_aio_context(app->threads[index]), &why) <
        0) {
        blk_complain("%s", why ? why : "the backend cannot be used with this monitor");
        free(why);
        iothread_destroy(app->threads[index]);
        return EXIT_USAGE;
    }
    return 0;
}

static int make_job(struct app *app, unsigned index, uint64_t run_id)
{
    const struct blk_options *opt = &app->opt;
    uint64_t share = opt->ios / opt->iothreads + (index < opt->ios % opt->iothreads);
    struct blk_job_config config = {
        .opt = opt,
        .blk = app->target.blk,
        .ctx = iothread_get_aio_context(app->threads[index]),
        .news = &news,
        .message_start = app->show_progress ? BLK_PROGRESS_CLEAR : "",
        .index = index,
        .initial = app->target.initial,
        .offset_bytes = (int64_t)(index * app->target.blocks * opt->bs_bytes),
        .blocks = app->target.blocks,
        .ios = opt->ios ? share : UINT64_MAX,
        .run_id = run_id,
    };

    app->jobs[index] = blk_job_new(&config);
    if (!app->jobs[index]) {
        blk_complain(
            "out of memory for iothread io%u: expected a smaller --iodepth, --bs or --size", index);
        iothread_destroy(app->threads[index]);
        return EXIT_FAILED;
    }
    return 0;
}

static int make_all(struct app *app)
{
    uint64_t run_id = make_run_id();

    app->threads = calloc(app->opt.iothreads, sizeof(*app->threads));
    app->jobs = calloc(app->opt.iothreads, sizeof(*app->jobs));
    if (!app->threads || !app->jobs) {
        blk_complain("out of memory");
        return EXIT_FAILED;
    }
    for (; app->made < app->opt.iothreads; app->made++) {
        int status = make_thread(app, app->made);

        if (status == 0) {
            status = make_job(app, app->made, run_id);
        }
        if (status != 0) {
            return status;
        }
    }
    return 0;
}

/* The reverse of making; a job may only go when its thread is gone. */
static void free_all(struct app *app)
{
    blk_target_close(&app->target);
    for (unsigned i = 0; i < app->made; i++) {
        iothread_destroy(app->threads[i]);
    }
    for (unsigned i = 0; i < app->made; i++) {
        blk_job_free(app->jobs[i]);
    }
    free(app->jobs);
    free(app->threads);
    aio_rcu_barrier();
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
    for (unsigned i = 0; i < app->made; i++) {
        if (blk_job_state(app->jobs[i]) == JOB_RUNNING) {
            return false;
        }
    }
    return true;
}

static bool must_stop(const struct app *app)
{
    for (unsigned i = 0; i < app->made; i++) {
        if (job_failed(app->jobs[i]) || blk_job_state(app->jobs[i]) == JOB_STUCK) {
            return true;
        }
    }
    return caught_signal != 0;
}

static void show_progress(struct app *app, bool layout, int64_t start_ns)
{
    if (layout) {
        blk_progress_show_layout(app->jobs, app->made, app->target.blocks * app->made);
    } else {
        blk_progress_show(&app->progress, app->jobs, app->made, &app->opt, start_ns);
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
        if (all_ended(app)) {
            break;
        }
        if (!stopped && must_stop(app)) {
            stopped = true;
            for (unsigned i = 0; i < app->made; i++) {
                blk_job_stop(app->jobs[i]);
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
    uint64_t laid_out = 0;

    for (unsigned i = 0; i < app->made; i++) {
        blk_job_layout(app->jobs[i]);
    }
    wait_for_jobs(app, true, 0);
    for (unsigned i = 0; i < app->made; i++) {
        laid_out += blk_job_results(app->jobs[i])->counters.laid_out;
    }
    return laid_out == app->target.blocks * app->made;
}

static void measure(struct app *app)
{
    int64_t start_ns = qemu_clock_get_ns(QEMU_CLOCK_REALTIME) + START_AHEAD_NS;

    for (unsigned i = 0; i < app->made; i++) {
        blk_job_run(app->jobs[i], start_ns);
    }
    wait_for_jobs(app, false, start_ns);
}

/* ---- The end --------------------------------------------------------------------------------- */

/* Says what went wrong, and returns the status for JSON: the worst that happened. */
static const char *judge(const struct app *app, bool laid_out)
{
    const char *status = caught_signal ? "interrupted" : "ok";

    for (unsigned i = 0; i < app->made; i++) {
        const struct blk_results *results = blk_job_results(app->jobs[i]);
        const struct blk_failure *failure = &results->failure;

        if (blk_job_state(app->jobs[i]) == JOB_STUCK) {
            blk_complain("io%u: requests were cancelled but do not end; giving up", i);
            return "stuck";
        }
        if (failure->what && strcmp(failure->what, "flush") == 0) {
            blk_complain("io%u: flush failed: %s", i, strerror(failure->error));
        } else if (failure->what && strcmp(failure->what, "drain") == 0) {
            blk_complain(
                "io%u: at the end no request ended for too long; what was left was cancelled", i);
        } else if (failure->what) {
            blk_complain("io%u: %s of %u bytes at offset %lld failed: %s", i, failure->what,
                         app->opt.bs_bytes, (long long)failure->offset_bytes,
                         strerror(failure->error));
        }
        if (failure->what) {
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
        .opt = &app->opt,
        .spec = app->target.spec,
        .driver = blk_get_driver_name(app->target.blk),
        .monitor = aio_context_get_monitor(iothread_get_aio_context(app->threads[0])),
        .status = status,
        .size_bytes = app->target.blocks * app->made * app->opt.bs_bytes,
        .threads = app->made,
        .jobs = app->jobs,
    };
    FILE *table = app->json == stdout ? stderr : stdout;
    bool good;

    blk_report_table(&r, table);
    good = finish_stream(table, "the table");
    if (app->json) {
        blk_report_json(&r, app->json);
        good = finish_stream(app->json, app->opt.json) && good;
    }
    return good;
}

/* Runs the jobs that have been made; returns the exit status. */
static int run(struct app *app)
{
    bool laid_out = !app->opt.layout || lay_out(app), reported;
    const char *status;

    if (laid_out && !caught_signal) {
        measure(app);
    }
    status = judge(app, laid_out);
    reported = report(app, status);
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
    if (!app->opt.json) {
        return 0;
    }
    app->json = strcmp(app->opt.json, "-") == 0 ? stdout : fopen(app->opt.json, "we");
    if (!app->json) {
        blk_complain("--json %s: expected a file that can be written: %s", app->opt.json,
                     strerror(errno));
        return EXIT_USAGE;
    }
    return 0;
}

int main(int argc, char *argv[])
{
    static struct app app;
    int status = blk_options_parse(&app.opt, argc, argv);

    if (status >= 0) {
        return status;
    }
    if (app.opt.conformance) {
        status = conformance_run(app.opt.conformance, app.opt.monitor, app.opt.seed, stdout);
        return status < 0 ? EXIT_USAGE : status > 0 ? EXIT_FAILED : 0;
    }
    if (set_up_signals() < 0) {
        blk_complain("cannot make an eventfd: %s", strerror(errno));
        return EXIT_FAILED;
    }
    app.show_progress = !app.opt.no_progress && isatty(STDERR_FILENO);
    status = blk_target_open(&app.target, &app.opt) < 0 ? EXIT_USAGE : open_json(&app);
    if (status == 0) {
        status = make_all(&app);
    }
    if (status == 0) {
        status = run(&app);
    }
    free_all(&app);
    if (app.json && app.json != stdout) {
        fclose(app.json);
    }
    return status;
}
