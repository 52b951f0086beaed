// llama_decode: llama.cpp's decoding token by token, with the time and the disk traffic of each.
//
//   llama_decode MODEL THREADS LOAD LAZY REPACK TOKENS
//
// LOAD: auto, none, mmap or dio. LAZY: off, auto or on. REPACK: 0 or 1. TOKENS: ids such as 5,17,3:
// one step each, from an empty KV cache. Its defaults are auto, auto and 1. Prints a line of JSON
// when the model is loaded and after each token; bytes are those of /proc/self/io.
#include "llama.h"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sstream>
#include <string>
#include <vector>

static void fail(const std::string & message) {
    fprintf(stderr, "llama_decode: %s\n", message.c_str());
    exit(1);
}

static void only_errors(ggml_log_level level, const char * text, void *) {
    if (level == GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
}

static double seconds() {
    using namespace std::chrono;
    return duration<double>(steady_clock::now().time_since_epoch()).count();
}

// Bytes that this process has had read or written: `field` is "read_bytes" or "write_bytes".
static long long disk_bytes(const char * field) {
    FILE * file = fopen("/proc/self/io", "r");
    if (!file) fail("cannot read /proc/self/io");
    char name[64];
    long long count, found = -1;
    while (fscanf(file, "%63[^:]: %lld\n", name, &count) == 2) {
        if (!strcmp(name, field)) found = count;
    }
    fclose(file);
    return found;
}

// One line: what happened, and the time and traffic since `start` and the counts given.
static void report(const char * event, double start, long long read, long long written) {
    printf("{\"event\": \"%s\", \"seconds\": %.6f, \"read_bytes\": %lld, \"written_bytes\": %lld}\n",
           event, seconds() - start, disk_bytes("read_bytes") - read,
           disk_bytes("write_bytes") - written);
    fflush(stdout);
}

int main(int argc, char ** argv) {
    if (argc != 7) fail("usage: llama_decode MODEL THREADS LOAD LAZY REPACK TOKENS");
    const int threads = atoi(argv[2]);
    const std::string lazy = argv[4];
    std::vector<llama_token> tokens;
    std::stringstream ids(argv[6]);
    for (std::string id; std::getline(ids, id, ',');) tokens.push_back(atoi(id.c_str()));
    if (threads < 1 || tokens.empty()) fail("THREADS is at least 1, and TOKENS at least one id");

    double start = seconds();
    llama_log_set(only_errors, nullptr);
    llama_backend_init();
    auto params = llama_model_default_params();
    params.load_mode = llama_load_mode_from_str(argv[3]);
    params.lazy_mode = lazy == "on"    ? LLAMA_LAZY_MODE_ON
                       : lazy == "off" ? LLAMA_LAZY_MODE_OFF
                                       : LLAMA_LAZY_MODE_AUTO;
    params.use_extra_bufts = atoi(argv[5]);
    llama_model * model = llama_model_load_from_file(argv[1], params);
    if (!model) fail("the model does not load");
    auto context = llama_context_default_params();
    context.n_ctx = tokens.size();
    context.n_batch = context.n_ubatch = 1;
    context.n_threads = context.n_threads_batch = threads;
    llama_context * state = llama_init_from_model(model, context);
    if (!state) fail("the context does not start");
    report("loaded", start, 0, 0);

    for (llama_token token : tokens) {
        start = seconds();
        const long long read = disk_bytes("read_bytes"), written = disk_bytes("write_bytes");
        if (llama_decode(state, llama_batch_get_one(&token, 1))) fail("a token did not decode");
        llama_synchronize(state);
        report("token", start, read, written);
    }
    llama_free(state);
    llama_model_free(model);
    return 0;
}
