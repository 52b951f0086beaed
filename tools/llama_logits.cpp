// llama_logits: the full-vocabulary logits of llama.cpp, window by window, as raw float32.
//
//   llama_logits MODEL TOKENS WINDOWS OUT THREADS REPACK
//
// TOKENS: int32 [N]. WINDOWS: int32 [W, 2], the start and end of each independently evaluated run
// of tokens. OUT: float32 [N, vocab], row i predicting what follows token i (rows outside every
// window are not written: windows must cover the tokens in order). REPACK: 1 lets llama.cpp copy
// its weights into another layout, 0 does not. Everything else is llama.cpp's default: f16 cache,
// flash attention "auto", batches of 2048 run 512 at a time; the file is memory-mapped.
#include "llama.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

static void fail(const std::string & message) {
    fprintf(stderr, "llama_logits: %s\n", message.c_str());
    exit(1);
}

static std::vector<int32_t> read_int32(const char * path) {
    FILE * file = fopen(path, "rb");
    if (!file) fail(std::string("cannot open ") + path);
    std::vector<int32_t> values;
    int32_t value;
    while (fread(&value, sizeof value, 1, file) == 1) values.push_back(value);
    fclose(file);
    return values;
}

static void only_errors(ggml_log_level level, const char * text, void *) {
    if (level >= GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
}

int main(int argc, char ** argv) {
    if (argc != 7) fail("usage: llama_logits MODEL TOKENS WINDOWS OUT THREADS REPACK");
    auto tokens = read_int32(argv[2]);
    const auto windows = read_int32(argv[3]);

    llama_log_set(only_errors, nullptr);
    llama_backend_init();
    auto model_params = llama_model_default_params();
    model_params.load_mode = LLAMA_LOAD_MODE_MMAP;
    model_params.use_extra_bufts = atoi(argv[6]) != 0;
    model_params.progress_callback = [](float, void *) { return true; };  // no dots
    llama_model * model = llama_model_load_from_file(argv[1], model_params);
    if (!model) fail("the model does not load");
    const size_t vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));

    int32_t longest = 0;
    for (size_t w = 0; w + 1 < windows.size(); w += 2) {
        longest = std::max(longest, windows[w + 1] - windows[w]);
    }
    auto context_params = llama_context_default_params();
    context_params.n_ctx = longest;
    context_params.n_batch = std::max<uint32_t>(context_params.n_batch, longest);
    context_params.n_threads = context_params.n_threads_batch = atoi(argv[5]);
    llama_context * context = llama_init_from_model(model, context_params);
    if (!context) fail("no context");

    FILE * out = fopen(argv[4], "wb");
    if (!out) fail(std::string("cannot write ") + argv[4]);
    for (size_t w = 0; w + 1 < windows.size(); w += 2) {
        const int32_t start = windows[w], length = windows[w + 1] - windows[w];
        llama_memory_clear(llama_get_memory(context), true);
        llama_batch batch = llama_batch_init(length, 0, 1);
        batch.n_tokens = length;
        for (int32_t i = 0; i < length; i++) {
            batch.token[i] = tokens.at(start + i);
            batch.pos[i] = i;
            batch.n_seq_id[i] = 1;
            batch.seq_id[i][0] = 0;
            batch.logits[i] = 1;
        }
        if (llama_decode(context, batch) != 0) fail("decode failed");
        const size_t values = vocab * length;
        if (fwrite(llama_get_logits(context), sizeof(float), values, out) != values) {
            fail("write failed");
        }
        llama_batch_free(batch);
    }
    if (fclose(out) != 0) fail("write failed");
    llama_free(context);
    llama_model_free(model);
    return 0;
}
