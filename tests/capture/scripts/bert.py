"""A small BERT under the Trainer of transformers, two batches a step."""

import sys
import tempfile

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

torch.manual_seed(0)
config = BertConfig(
    vocab_size=30,
    hidden_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=16,
    max_position_embeddings=8,
)
model = BertForSequenceClassification(config)
words = torch.randint(30, (24, 6), generator=torch.Generator().manual_seed(1))
data = [{"input_ids": row, "labels": row[0] % 2} for row in words]
with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(
        folder,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        max_steps=4,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
        logging_steps=1,
    )
    trainer = Trainer(model, arguments, train_dataset=data)
    trainer.remove_callback(PrinterCallback)  # which prints how long it took
    done = trainer.train()
sys.stdout.write(f"{done.training_loss} {[one.sum().item() for one in model.parameters()]}\n")
