// llama_tokens: the token ids llama.cpp gives to texts of any bytes.
//
//   llama_tokens MODEL TEXTS OUT
//
// TEXTS: records of an int32 byte length, then that many bytes. OUT: for each, an int32 count, then
// that many int32 ids. Nothing is added in front, and special tokens in a text are ordinary text.
#include "llama.h"

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

static void fail(const std::string & message) {
    fprintf(stderr, "llama_tokens: %s\n", message.c_str());
    exit(1);
}

static void only_errors(ggml_log_level level, const char * text, void *) {
    if (level >= GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
}

int main(int argc, char ** argv) {
    if (argc != 4) fail("usage: llama_tokens MODEL TEXTS OUT");
    llama_log_set(only_errors, nullptr);
    auto params = llama_model_default_params();
    params.vocab_only = true;
    llama_model * model = llama_model_load_from_file(argv[1], params);
    if (!model) fail("the model does not load");
    const llama_vocab * vocab = llama_model_get_vocab(model);

    FILE * in = fopen(argv[2], "rb");
    FILE * out = fopen(argv[3], "wb");
    if (!in || !out) fail("cannot open the files");
    int32_t length;
    while (fread(&length, sizeof length, 1, in) == 1) {
        std::string text(length, '\0');
        if (fread(text.data(), 1, length, in) != size_t(length)) fail("a text is cut short");
        std::vector<llama_token> ids(length + 1);
        const int32_t count =
            llama_tokenize(vocab, text.data(), length, ids.data(), ids.size(), false, false);
        if (count < 0) fail("more tokens than bytes");
        fwrite(&count, sizeof count, 1, out);
        fwrite(ids.data(), sizeof(llama_token), count, out);
    }
    if (fclose(out) != 0) fail("write failed");
    fclose(in);
    llama_model_free(model);
    return 0;
}
